"""The adapters that come with camtools: timm, torchvision, and generic for any other classifier."""
