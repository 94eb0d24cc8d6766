"""Text in, token ids out: reading rows, chat templates, preference pairs, prompts and demonstrations.

Nothing here knows of models beyond the tokenizer, except reference_cache.py, which runs the frozen reference model once.
"""
