"""Decoding in processes that can be killed.

decoders  the processes, as a service sees them: started, asked, killed
worker    the program that they run
"""
