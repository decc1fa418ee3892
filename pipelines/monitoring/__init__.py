"""Did the world change, and is a retraining due?"""
