# Every target creates what it needs. CI runs these same targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: protos
protos:
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy_grpc=../$(BIN)/protoc-gen-mypy_grpc \
		--python_out=. --pyi_out=. --grpc_python_out=. --mypy_grpc_out=. weft/v1/*.proto
