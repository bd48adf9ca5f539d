"""A bundle, a table and labelled images in; decisions in the table, and a page on how far they hold, out."""
