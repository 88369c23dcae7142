"""Activation steering, one small module per notebook.

``models → pairs → activations → directions → steering → generation → evaluation → sweeps →
views → explorer``: imports run one way, and a reader who finished notebook NN can read the
modules of the same subject.
"""
