"""Let views of computed tensors be reshapes: a kernel may return other strides than the capture.

A capture knows the strides that an op would return. The kernel that then runs may be another one,
chosen for the precision, the device or the version, and return other strides. A view of its result
can be impossible then. ``reshape`` is the same view where one is possible, and a copy where not.
"""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.program.control_flow import all_graphs

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)


def reshape_views(module: fx.GraphModule) -> int:
    """Replace views by reshapes in a graph that runs op by op; return how many.

    Example:
        >>> before_and_after(reshape_views, graph(lambda x: (x + 1).view(4), x=f32(2, 2)))
        - view  f32[4]  view add [4]
        + view  f32[4]  reshape add [4]
    """
    changes = 0
    for graph in all_graphs(module):
        for node in graph.graph.nodes:
            if node.target in _VIEWS and node.args[0].op != "placeholder":
                node.target = _ATEN.reshape.default
                changes += 1
    return changes
