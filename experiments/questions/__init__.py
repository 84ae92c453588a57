"""What is asked: data sets, and how answers are scored."""
