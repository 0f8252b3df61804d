"""The networks: one file for each chapter or family. They import torch and torchvision; timm where one of its nets is wanted."""
