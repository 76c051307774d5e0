"""How synthetic.py draws a face."""
