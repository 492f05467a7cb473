"""Engines that sample completions, token ids in and token ids out."""
