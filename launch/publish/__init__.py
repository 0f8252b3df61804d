"""A trained net as a folder that other libraries load, checked by loading it: `oneloop publish`.

folder   the folder: weights, config.json, card, plots
loaded   the folder loaded back through timm and transformers, and compared with the net
card     README.md, the model card
push     the folder to the Hugging Face hub
"""
