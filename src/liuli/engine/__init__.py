"""Weights to text, fast.

In: a model (tokens to logits, with a cache it is handed), a tokenizer, prompts as tokens or messages.
Out: tokens one by one as they may be shown, or whole answers, of one prompt or a batch of different ones.
It does not know how the model computes, how it was trained, who asks, or what HTTP is.
"""
