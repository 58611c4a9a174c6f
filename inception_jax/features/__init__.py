"""Features of a network's endpoints, their statistics and the Fréchet distance (FID), and saliency maps."""
