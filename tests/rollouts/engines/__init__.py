"""Tests of the engines that write completions."""
