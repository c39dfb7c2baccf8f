"""What did the user ask for, and which masks meet it exactly?"""
