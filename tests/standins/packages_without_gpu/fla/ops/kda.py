from fla.ops import start


def chunk_kda(q, k, v, g, beta, scale=None, initial_state=None, cu_seqlens=None, **kwargs):
    start()


def fused_recurrent_kda(q, k, v, g, beta=None, scale=None, initial_state=None, cu_seqlens=None, **kwargs):
    start()
