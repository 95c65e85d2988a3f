"""A baseline in the style of this field's released codes, written from a description of them; no code is copied.

The sins are theirs, kept on purpose: BatchNorm hooks with a pass for the mean and a permuted copy for the variance, in
every forward pass; float32 in NCHW; weight gradients of the frozen teacher and of the student in synthesis; a Python
list of noisy Linears whose outputs are concatenated one by one; crops sample by sample; a pool of PNG files, written
one by one, and a new DataLoader after every round; optimisers and generators made anew; `.item()` in every step.
What they compute is what the methods of dfkd_fast compute. MUSE has no released code: NAYER's, on which it builds, with
MUSE's terms.
"""
