"""Activation steering, one small module per notebook.

``models → pairs → activations → directions → steering → evaluation``: imports run one way,
and a reader who finished notebook NN can read the module of the same subject.
"""
