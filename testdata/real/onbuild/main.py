import os


def greeting():
    return "runs in " + os.environ["APP_ENV"]


if __name__ == "__main__":
    print(greeting())
