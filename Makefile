# make        set-up in .venv, the book in _build/html, and one sound from a caption
# make test   the same set-up, then lint, unit and parity tests, every chapter, a strict build of the book, and its pages in a
#             browser where there is one
# make bench  how fast and how lean minilib is, also beside diffusers, into data/benchmarks.md (15 minutes; no test needs it)
# make graders  tries every right and wrong answer on the tests of the assignments (no test needs it)
# make colab  the course in one file, course.zip, for Colab, and the peers' weights in course-peers.zip
# make clean  removes what the two have made, but for .venv

SHELL := bash
PYTHON ?= python3
CAPTION := a dog barks twice

PY := .venv/bin/python
BUILD := $(PY) -c 'from jupyter_book.cli.main import main; main()' build .
BOOK := _build/html/index.html
BOOK_LOG := _build/book.log
BOOK_SOURCES := _config.yml _toc.yml requirements.txt $(shell find book chapters -type f ! -path '*/.*' ! -name '*.pyc')
SOUND_SOURCES := $(shell find minilib data/weights/tiny -type f ! -name "*.pyc" 2>/dev/null)

PARTS := 1

# One sentence on the way out; stop_with first shows the last lines of a log.
stop = { echo "$(1)" >&2; exit 1; }
stop_with = { tail -n 15 $(1) >&2; echo "$(2)" >&2; exit 1; }

.PHONY: all test bench graders colab clean setup
.NOTPARALLEL:
.DELETE_ON_ERROR:

all: PARTS := 3
all: setup $(BOOK) first_sound.wav
	@echo
	@echo "The book:     $(CURDIR)/$(BOOK)"
	@echo "First sound:  $(CURDIR)/first_sound.wav  (its spectrogram: first_sound.png)"

setup:
	@echo "[1/$(PARTS)] The environment, in .venv"
	@.ci/setup "$(PYTHON)"

$(BOOK): $(BOOK_SOURCES) | setup
	@echo "[2/3] The book, in _build/html"
	@mkdir -p _build
	@$(BUILD) >$(BOOK_LOG) 2>&1 \
		|| $(call stop_with,$(BOOK_LOG),The book could not be built: the last lines of $(BOOK_LOG) stand above.)
	@touch $@

first_sound.wav: $(SOUND_SOURCES) | setup
	@echo "[3/3] A first sound: \"$(CAPTION)\""
	@$(PY) -m minilib generate "$(CAPTION)" --seed 0 -o $@ --plot first_sound.png

test: PARTS := 6
test: setup
	@echo "[2/6] Lint"
	@$(PY) -m ruff check . || $(call stop,Lint: what is listed above is to be mended; ruff check --fix does much of it.)
	@$(PY) -m ruff format --check . || $(call stop,Lint: run .venv/bin/ruff format on what is listed above.)
	@echo "[3/6] Unit and parity tests"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 tests --ignore tests/browser || $(call stop,A test failed: see pytest's report above.)
	@echo "[4/6] The chapters, run anew and compared with their stored outputs"
	@MINILIB_DEVICE=cpu $(PY) -m pytest -q --nbval chapters || $(call stop,A chapter failed or its outputs are stale: see above.)
	@echo "[5/6] The book, warnings as errors"
	@mkdir -p _build
	@$(BUILD) --all -W -n --keep-going >$(BOOK_LOG) 2>&1 \
		|| $(call stop_with,$(BOOK_LOG),The book has warnings or errors: see the last lines of $(BOOK_LOG) above.)
	@touch $(BOOK)
	@echo "[6/6] Its pages in a browser"
	@$(PY) -m pytest -q -n 2 tests/browser || $(call stop,A page is not as it should be: see above.)
	@echo "All is well."

bench: setup
	@$(PY) tests/bench --out data/benchmarks.md

graders: setup
	@$(PY) -m minilib.assign.graders

colab: setup
	@$(PY) book/tools/course_zip.py

clean:
	@rm -rf _build first_sound.wav first_sound.png course.zip course-peers.zip .pytest_cache .ruff_cache
