"""How long do networks take, and which widths take what was asked?"""
