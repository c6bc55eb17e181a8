"""The two networks of Med-DisSeg: blocks, ResNet-50 encoder, decoder parts and the stages themselves."""
