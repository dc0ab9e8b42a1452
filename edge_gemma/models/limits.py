"""How large a model may be, whichever file says so."""

MAX_LAYERS = 256
MAX_WIDTH = 16384
MAX_FF_WIDTH = 2**18
MAX_HEADS = 256
MAX_EXPERTS = 1024
MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 1024
MAX_CONTEXT = 2**22
MAX_VOCAB = 2**20
MIN_EPS, MAX_EPS = 1e-12, 1e-2
MAX_ROPE_BASE = 1e9
MAX_ROPE_SCALE = 1024
MULTIPLE = 32  # of every row of weights: the kernels' step
