"""Networks in other runtimes, and do they compute the same there?"""
