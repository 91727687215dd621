from setuptools import setup

setup(
    name="inventory",
    version="0.9.1",
    description=open("README").read().strip(),
    packages=["inventory"],
    package_data={"inventory": ["*.txt"]},
    entry_points={"console_scripts": ["inventory = inventory.main:main"]},
)
