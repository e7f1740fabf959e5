"Read name, version and requirements from settings.ini, the one place that holds them."
from configparser import ConfigParser
from setuptools import find_packages, setup

config = ConfigParser()
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], license='Apache-2.0',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], keywords=cfg['keywords'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    package_data={'papers_lib.lab': ['books/*', 'sets.toml', 'templates/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={x: cfg[f'{x}_requirements'].split()
                    for x in ('run', 'dev', 'eval', 'rec', 'words', 'chat', 'onnx', 'cluster', 'data')},
    entry_points={'console_scripts': ['papers=papers_lib.lab.cli:main'],
                  'nbdev': [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d']},
)
