"""A baseline in the style of this field's released codes, written from a description of them; no code is copied.

The sins are theirs, kept on purpose: BatchNorm hooks with a pass for the mean and a permuted copy for the variance, in
every forward pass; float32 in NCHW; weight gradients of the frozen teacher and of the student in synthesis; a Python
list of noisy Linears whose outputs are concatenated one by one; a clone of the generator for each round and a Python
loop over its gradients; a feature bank in host memory; crops sample by sample; a pool of PNG files, written one by one,
and a new DataLoader after every round; optimisers and generators made anew; `.item()` in every step.
What they compute is what the methods of dfkd_fast compute. MUSE and SSD-KD have no released code: here they are
NAYER's, on which MUSE builds, with its terms, and Fast's with SSD-KD's priorities and a pool that deletes its oldest
files.

It is at its best within that style: no DataLoader workers where it has one core, no experiment server, no tables or
pictures for the eye, no evaluation and no best checkpoint by test accuracy. `whole_run.py` runs a recipe.
"""
