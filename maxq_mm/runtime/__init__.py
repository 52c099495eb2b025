"""What makes a trained model fast in this process, on its own device; training never imports it."""
