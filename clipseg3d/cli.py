"""The command line."""
import sys
def main():
    from clipseg3d.training.cli import run
    run(sys.argv[1:])
