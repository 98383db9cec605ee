"""One HTML file with a graph before and after, its tables, and the measurements.

The input is views and measurements. The output is a page that needs no network. Names in a model
are text, never markup. ``page`` contains the page, ``vendor`` JavaScript libraries with licences.
"""
