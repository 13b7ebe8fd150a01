"""The programs behind every published figure. Each prints a table with minimum, median and maximum, and the ratio to a
floor that it measured in the same run: machines are noisy, and a ratio survives that."""
