"""What a frozen role showed, in files."""
