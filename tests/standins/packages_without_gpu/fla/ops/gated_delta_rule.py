from fla.ops import start


def chunk_gated_delta_rule(q, k, v, g=None, beta=None, scale=None, initial_state=None, cu_seqlens=None, **kwargs):
    start()


def fused_recurrent_gated_delta_rule(q, k, v, g=None, beta=None, initial_state=None, cu_seqlens=None, **kwargs):
    start()
