"""How explanations are drawn: text, legends, overlays, colours, and figures of several panels."""
