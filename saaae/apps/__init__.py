"""What the method is good for: pictures of any size, compressed, repaired and made."""
