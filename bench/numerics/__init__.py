"""Does mixed precision train as FP32 does, and are our warnings and recommendations right?"""
