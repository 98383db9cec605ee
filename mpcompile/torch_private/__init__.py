"""All uses of torch that are not public API, each with its purpose.

In come graphs, tensors and functions; out come what only private names of torch can make of them.
Checked on the versions of `versions`. Nothing outside this room imports from a torch package or
reads a torch attribute whose name starts with an underscore, or from ``torch.fx.experimental``.
`inductor` imports slow modules inside its functions.

A torch outside the range may lack one of these names: then the import of this room ends in a
`BadInput` that says so.
"""

from importlib import import_module

import torch

from mpcompile.errors import BadInput
from mpcompile.torch_private.versions import is_tried, range_tried

try:
    for _name in ("graphs", "inductor", "ops", "tensors", "tracing"):
        import_module(f"{__name__}.{_name}")
except (ImportError, AttributeError) as error:
    if is_tried(torch.__version__):
        raise
    raise BadInput(
        f"torch {torch.__version__} lacks a part that mpcompile needs ({error})",
        fix=f"install torch {range_tried()}",
    ) from error
