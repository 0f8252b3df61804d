"""The networks: one file for each chapter or family. They import nothing but torch and torchvision."""
