"""A page on one's own machine to compare responses, the file of labels it writes, and preference rows from it."""
