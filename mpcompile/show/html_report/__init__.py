"""One HTML file that shows a graph before and after, its tables and what was measured.

In come views and measurements; out goes a page that needs no network. Names inside a model are text
and never markup. `page` holds the page, ``vendor`` the published JavaScript with its licences.
"""
