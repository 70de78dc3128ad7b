# Every target sets up what it needs: a new clone on a fresh Debian machine builds with any of them.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := build/.stamps

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Where `make install` puts things; see deploy/install.sh.
export PREFIX DESTDIR UNITDIR SYSCONFDIR EXTRAS PYTHON FORCE

.PHONY: all build wheels install uninstall demo tables test test-fast test-native test-rdma lint format bench pictures clean system

all: build

system: $(STAMP)/system
$(STAMP)/system: deploy/setup-system.sh
	@mkdir -p $(STAMP)
	bash deploy/setup-system.sh
	@touch $@

$(STAMP)/system-test: deploy/setup-system.sh
	@mkdir -p $(STAMP)
	bash deploy/setup-system.sh test
	@touch $@

$(STAMP)/venv: pyproject.toml deploy/client/pyproject.toml deploy/setup-venv.sh $(STAMP)/system
	bash deploy/setup-venv.sh $(VENV)
	@touch $@

NATIVE_SOURCES := $(shell find native proto -name '*.cc' -o -name '*.h' -o -name '*.proto' -o -name 'CMakeLists.txt' -o -name generate.py)
# Which modules there are: an editable installation knows each by its path, so one that moved needs a new installation.
$(STAMP)/modules: FORCE
	@mkdir -p $(STAMP)
	@find medes -name '*.py' | sort >$@.new && cmp -s $@.new $@ && rm $@.new || mv $@.new $@

.PHONY: FORCE
FORCE:

$(STAMP)/build: $(STAMP)/venv $(STAMP)/modules $(NATIVE_SOURCES)
	$(VENV)/bin/pip install -q --no-build-isolation --no-deps -e deploy/client -e .
	@touch $@

build: $(STAMP)/build

# Both distributions, ready for pip; and the whole service: command, units, settings (deploy/README.md).
$(STAMP)/wheels: $(STAMP)/system deploy/wheels.sh pyproject.toml README.md LICENSE $(wildcard deploy/client/*) \
		$(NATIVE_SOURCES) $(shell find medes -type f -name '*.py' -o -name '*.pyi' -o -name '*.toml')
	bash deploy/wheels.sh build/dist
	@touch $@

wheels: $(STAMP)/wheels

install: $(STAMP)/wheels
	DIST=build/dist bash deploy/install.sh install

uninstall:
	bash deploy/install.sh uninstall

demo: build
	$(VENV)/bin/medes demo $(ARGS)

# The native tests run three times: plain, under address+undefined sanitizers, under the thread sanitizer.
test-native: $(STAMP)/system-test
	bash tests/native.sh

test-fast: build $(STAMP)/system-test
	$(PY) -m pytest -m "not slow and not rdma and not chaos" $(ARGS)

test-rdma: build $(STAMP)/system-test
	$(PY) -m pytest tests/rdma $(ARGS)

test: $(STAMP)/system-test build lint test-native
	$(PY) -m pytest $(ARGS)

lint: build
	$(VENV)/bin/ruff check medes tests proto deploy
	$(VENV)/bin/ruff format --check medes tests proto deploy
	$(VENV)/bin/mypy
	find native -name '*.cc' -o -name '*.h' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(STAMP)/venv
	$(VENV)/bin/ruff check --fix medes tests proto deploy || true
	$(VENV)/bin/ruff format medes tests proto deploy
	find native -name '*.cc' -o -name '*.h' | xargs $(VENV)/bin/clang-format -i

# The tables of docs/ that the code says: settings, errors, exit codes, metrics.
tables: build
	$(PY) -m tests.support.docs_tables

# docs/pictures: the quick start as a recording, the alternatives as they are measured (some twenty minutes; an
# interrupted run goes on, another commit begins anew).
pictures: MEASURED = build/pictures/$(shell git describe --always --dirty)
pictures: build $(STAMP)/system-test
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m medes.eval docs/pictures
	$(VENV)/bin/medes eval run idle-memory first-answer --out $(MEASURED)
	cp $(MEASURED)/*.jsonl docs/pictures
	$(VENV)/bin/medes eval draw docs/pictures

bench: build $(STAMP)/system-test
	$(VENV)/bin/medes bench all $(ARGS)

clean:
	rm -rf build $(VENV) results
