# make reproduce   train VAE and SAAAE on the shipped photographs, leave results/quick/
# make evidence    controls, seeds, statistics: run what is missing of results/evidence/ (hours; can be stopped and continued), then the verdict
# make tiny_imagenet  the same on Tiny-ImageNet (12,500 training images, downloaded on first use; hours, or minutes with DEVICE=cuda WORKERS=16)
# make regime      how much training the evidence needs: error against training and width, on validation photographs
# make water       one VAE at every rate: water-filling and tempering beside VAEs trained for each (some minutes a seed)
# make noise_bank  a VAE trained on 256 noise vectors again and again, as published (some minutes a seed)
# make audit       six VAEs of pythae, trained and audited (some minutes), into results/audit/
# make notebooks   run the notebooks of the method, the lab and the applications that have changed; their outputs are committed
# make verdict     draw the verdict again from the tables of results/evidence/
# make check VARIANT=saaae SEED=0   one run of the evidence again, beside its rows in the tables (a minute or two);
#                  EXPERIMENT=precision: of results/precision/
# make precision   one model for all rates, regions: run what is missing of results/precision/ (an hour or two; can be stopped and continued)
# make applications  inpainting, denoising, compression, conditional generation, and the tutorial of anchoring, into results/applications/ (an hour
#                  and more); KODAK=folder measures compression on the Kodak suite, too
# make codec_peer  our codec beside CompressAI's hyperprior at equal training, and what an anchor does there (an hour and a half; can be
#                  stopped and continued)
# make recognition  importance trained for a classifier of Tiny-ImageNet (downloaded on first use), six seeds; the importance that ships (two hours,
#                  can be stopped and continued)
# make models      train the models that ship again, into saaae/pretrained/ (an hour and a half; can be stopped and continued; needs apt-get)
# make bench       training at the published widths beside other loops: images a second, memory, share of the rate of matrix products (a quarter of an hour)
# make full        the published schedule whole, on photos64: 3,000 epochs of both models, for a machine with a CUDA device
# make test        the tests, but for those over a minute; two processes of one thread each
# make test-slow   those over a minute, likewise; CI runs both
# make explore     JupyterLab on a copy of the explorer: nothing to train, nothing to set, nothing changes here
# make watch       JupyterLab on the notebook that follows runs while they train
# make docs        the documentation site, docs/_build/html/index.html
# make lab         JupyterLab on the notebooks
# make export      notebooks -> package, notebooks cleaned
# make readme      fill the tables of README and pages from results/
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOK := SAAAE_image_mask-linear.ipynb
PAPERMILL := $(BIN)/papermill -k python3 --no-progress-bar --log-level ERROR --stdout-file /dev/stdout
# JupyterLab refuses to run as root unless told; containers often are.
JUPYTER := $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)
# Threads that wait sleep, rather than spin: alone a run is somewhat slower so, beside other work many times faster.
export OMP_WAIT_POLICY ?= PASSIVE
# glibc keeps what is freed for the next step, rather than give it back to the kernel and fetch it anew each time.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 2147483647

.PHONY: reproduce evidence tiny_imagenet regime water noise_bank audit notebooks verdict check precision applications codec_peer recognition models bench full \
	test test-slow explore watch docs lab export readme

.venv/installed: requirements.lock setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --use-pep517 -e .
	@touch $@

reproduce: .venv/installed
	@mkdir -p results/quick
	@$(PAPERMILL) nbs/$(NOTEBOOK) results/quick/$(NOTEBOOK)
	@echo "The results are in results/quick: summary.md is the table, recon/ has the pictures, $(NOTEBOOK) tells the story."

evidence: .venv/installed
	@mkdir -p results/evidence
	@$(PAPERMILL) nbs/lab/evidence.ipynb results/evidence/evidence.ipynb
	@$(MAKE) --no-print-directory verdict

verdict: .venv/installed
	@$(PAPERMILL) nbs/lab/verdict.ipynb results/evidence/verdict.ipynb
	@echo "results/evidence/verdict.md says what holds; verdict.ipynb shows it."

WORKERS ?= 2
DEVICE ?= cpu
TINY := dataset=tiny_imagenet epochs=8 train_images=12500 test_images=1000
tiny_imagenet: .venv/installed
	@mkdir -p results/tiny_imagenet
	@$(BIN)/python tools/run_evidence.py results/tiny_imagenet --workers $(WORKERS) $(TINY) eval_every=1 device=$(DEVICE)
	@$(PAPERMILL) nbs/lab/evidence.ipynb results/tiny_imagenet/evidence.ipynb -p out results/tiny_imagenet \
		$(subst =, ,$(TINY:%=-p %))
	@$(PAPERMILL) nbs/lab/verdict.ipynb results/tiny_imagenet/verdict.ipynb -p out results/tiny_imagenet

regime: .venv/installed
	@mkdir -p results/regime
	@$(PAPERMILL) nbs/lab/regime.ipynb results/regime/regime.ipynb

water: .venv/installed
	@mkdir -p results/water
	@$(PAPERMILL) nbs/lab/water.ipynb results/water/water.ipynb

noise_bank: .venv/installed
	@mkdir -p results/noise_bank
	@$(PAPERMILL) nbs/lab/noise_bank.ipynb results/noise_bank/noise_bank.ipynb

audit: .venv/installed
	@mkdir -p results/audit
	@$(PAPERMILL) nbs/lab/audit_others.ipynb results/audit/audit_others.ipynb

notebooks: .venv/installed
	@$(BIN)/python tools/run_notebooks.py
	@$(BIN)/nbdev_clean

VARIANT ?= saaae
SEED ?= 0
EXPERIMENT ?= evidence
check: .venv/installed
	@OMP_NUM_THREADS=1 $(BIN)/python -c 'import sys; from saaae.lab.sweep import check_run; \
		sys.exit(not check_run("$(EXPERIMENT)", "$(VARIANT)", $(SEED)))'

precision: .venv/installed
	@mkdir -p results/precision
	@$(PAPERMILL) nbs/lab/precision.ipynb results/precision/precision.ipynb
	@echo "results/precision/goals.md says what was reached, tries.md what was tried; precision.ipynb shows it."

# Two notebooks at a time, on one thread each: sooner done than one on two.
applications: .venv/installed
	@mkdir -p results/applications
	@$(BIN)/python data/photos64/build.py --originals
	@printf '%s\n' denoising generation inpainting restorer_controls any_vae | OMP_NUM_THREADS=1 xargs -P 2 -I @ sh -c \
		'echo "@ begins"; $(BIN)/papermill -k python3 --no-progress-bar --log-level ERROR nbs/apps/@.ipynb results/applications/@.ipynb && echo "@ is done"'
	@$(BIN)/papermill -k python3 --no-progress-bar --log-level ERROR nbs/apps/compression.ipynb results/applications/compression.ipynb $(if $(KODAK),-p kodak $(KODAK))
	@echo "results/applications has a table, a picture and an executed notebook for each."

codec_peer: .venv/installed
	@mkdir -p results/applications
	@$(BIN)/python data/photos64/build.py --originals
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/peer -r requirements.peer
	@PYTHONPATH=$(CURDIR)/.venv/peer $(PAPERMILL) nbs/apps/codec_peer.ipynb results/applications/codec_peer.ipynb

recognition: .venv/installed
	@mkdir -p results/applications
	@$(BIN)/python -m saaae.apps.recognition
	@$(PAPERMILL) nbs/apps/preserving.ipynb results/applications/preserving.ipynb

models: .venv/installed
	@mkdir -p results/shipped
	@$(PAPERMILL) nbs/tools/shipped.ipynb results/shipped/shipped.ipynb
	@echo "The models and their card are in saaae/pretrained/photos64."
	@$(BIN)/python data/photos64/build.py --originals
	@printf '%s\n' codec restorer | OMP_NUM_THREADS=1 xargs -P 2 -I @ $(BIN)/python -m saaae.apps.picture_training @
	@OMP_NUM_THREADS=1 $(BIN)/python -m saaae.apps.picture_training ship
	@echo "The models for pictures are in saaae/pretrained/pictures."

bench: .venv/installed
	@mkdir -p results/bench
	@$(PAPERMILL) nbs/tools/bench.ipynb results/bench/bench.ipynb
	@for table in results/bench/*.md; do echo; cat $$table; done

full: .venv/installed
	@mkdir -p results/full
	@$(PAPERMILL) nbs/$(NOTEBOOK) results/full/$(NOTEBOOK) -p preset stl10 -p dataset photos64 -p device cuda -p arithmetic bf16 -p compile True -p out results/full
	@echo "The results are in results/full: summary.md is the table, recon/ has the pictures, speed.csv the time of each epoch."

test: .venv/installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests

test-slow: .venv/installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow tests

explore: .venv/installed
	@folder=$$(mktemp -d) && cp nbs/tools/explore.ipynb $$folder && \
	$(JUPYTER) --LabApp.default_url=/lab/tree/explore.ipynb $$folder

watch: .venv/installed
	@$(JUPYTER) --LabApp.default_url=/lab/tree/nbs/tools/watch.ipynb

docs: .venv/installed
	@$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "The site is docs/_build/html/index.html."

lab: .venv/installed
	@$(JUPYTER) nbs

export: .venv/installed
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

readme: .venv/installed
	@$(BIN)/python tools/fill_readme.py
