"Install `saaae` as `settings.ini` describes it."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
c = config["DEFAULT"]
setup(
    name=c["lib_name"], version=c["version"], description=c["description"], author=c["author"], license="MIT",
    url=c["git_url"], python_requires=f">={c['min_python']}", packages=find_packages(include=["saaae*"]),
    package_data={"saaae": ["py.typed", "pretrained/*/*", "pretrained/*/*/*", "samples/*"]},
    install_requires=c["requirements"].split(),
    extras_require={extra: c[f"{extra}_requirements"].split() for extra in ("diffusers", "explore", "trackers", "dev")},
    entry_points={"console_scripts": c["console_scripts"].split()},
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
)
