"""Text in, token ids out: reading rows, chat templates, preference pairs, prompts and demonstrations.

Nothing here knows of models beyond the tokenizer, except entropies.py, which runs the frozen reference model once.
"""
