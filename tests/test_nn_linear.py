"Kernels of one product: all alike, and none where the compiler chooses."
import torch
from papers_lib.nn.linear import Linear

close = torch.testing.assert_close


def test_a_compiled_linear_leaves_the_kernel_to_the_compiler():
    seen = []
    def backend(graph, inputs): seen.append(graph.code); return graph
    layer, x = Linear(1024, 512), torch.randn(64, 1024)
    y = torch.compile(layer, backend=backend, fullgraph=True)(x)
    assert len(seen) == 1 and 'linear' in seen[0] and 'mkldnn' not in seen[0] and '_Product' not in seen[0] and 'autograd_function' not in seen[0]
    assert torch.allclose(y, layer(x), atol=1e-4)
