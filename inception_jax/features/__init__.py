"""What a network sees inside: features of its endpoints, their statistics and distances, and saliency."""
