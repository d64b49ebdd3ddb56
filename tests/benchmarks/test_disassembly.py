"""Loops found in machine code, and what of them counts."""

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

from fastvq.benchmarks.disassembly import matrix_loops

# A loop over codes around one over pieces and one that multiplies nothing, with code before and after.
TEXT = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32 R4, R8, R12, RZ ;
.L_x_3:
        /*0020*/                   MOV R2, RZ ;
.L_x_0:
        /*0030*/                   LDS R8, [R3] ;
        /*0040*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24 ;
        /*0050*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0 ;
        /*0060*/              @!P1 BRA `(.L_x_9) ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
.L_x_9:
        /*0080*/                   FMNMX R5, R24, R5, !PT ;
.L_x_1:
        /*0090*/                   IADD3 R2, R2, 0x1, RZ ;
        /*00a0*/               @P2 BRA `(.L_x_1) ;
        /*00b0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00c0*/               @P3 BRA `(.L_x_3) ;
        /*00d0*/                   STG.E desc[UR4][R6.64], R5 ;
        /*00e0*/                   EXIT ;
.L_x_2:
        /*00f0*/                   BRA `(.L_x_2);
"""


def test_loops_are_counted_without_the_loops_inside_them():
    inner, outer = matrix_loops(TEXT)
    assert (inner.matrix, inner.others) == (2, 3)
    # The outer loop's own share holds no product, the product before it belongs to neither.
    assert (outer.matrix, outer.others) == (0, 4)
    assert outer.instructions == {"MOV": 1, "FMNMX": 1, "WARPGROUP": 1, "BRA": 1}


def test_code_without_loops_or_products():
    assert matrix_loops("") == []
    assert matrix_loops(TEXT.replace("HGMMA", "FFMA").replace("HMMA", "FFMA")) == []
