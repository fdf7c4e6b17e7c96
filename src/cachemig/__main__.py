from cachemig.cli import main

if __name__ == "__main__":
    main()
