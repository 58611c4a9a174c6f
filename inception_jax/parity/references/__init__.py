"""Programs that run the publishers' own implementations, in the environments where these are installed.

Each is a file that runs by itself, without this package: `python torch_side.py REQUEST.npz RESULT.npz`. The request
holds `source`, `model`, `mode` ("eval", or "train": batch statistics, no dropout), `dtype`, `images` [B, H, W, 3],
`w/<name>` for every array under the publisher's name, and, where gradients are compared, `probe` of the shape of the
logits and `probe_aux/<i>` of that of the auxiliary ones: gradients are those of Σ probe · logits + Σ probe_aux · aux.
The result holds `logits`, `aux/<i>` (the head nearest the input first), `g/<name>` for every trained array, and
`version` of the implementation.
"""
