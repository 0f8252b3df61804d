"""What is trained: one file per chapter or family of networks. Imports torch and torchvision only."""
