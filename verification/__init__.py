"""The rooms behind verify.py: what a photograph shows, what the network says of it, the pictures of an answer, the web page."""
