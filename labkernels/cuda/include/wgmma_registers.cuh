// For wgmma.cuh: the accumulators of every N in PTX's words, since inline assembly cannot count. LK_D<N> is their list in the
// instruction, LK_F<N> the operands; each N adds four to the N before. LK_SUM, "+f" or "+r", is what kind of register an accumulator is.
#pragma once

#define LK_D8 "%0, %1, %2, %3"
#define LK_D16 LK_D8 ", %4, %5, %6, %7"
#define LK_D24 LK_D16 ", %8, %9, %10, %11"
#define LK_D32 LK_D24 ", %12, %13, %14, %15"
#define LK_D40 LK_D32 ", %16, %17, %18, %19"
#define LK_D48 LK_D40 ", %20, %21, %22, %23"
#define LK_D56 LK_D48 ", %24, %25, %26, %27"
#define LK_D64 LK_D56 ", %28, %29, %30, %31"
#define LK_D72 LK_D64 ", %32, %33, %34, %35"
#define LK_D80 LK_D72 ", %36, %37, %38, %39"
#define LK_D88 LK_D80 ", %40, %41, %42, %43"
#define LK_D96 LK_D88 ", %44, %45, %46, %47"
#define LK_D104 LK_D96 ", %48, %49, %50, %51"
#define LK_D112 LK_D104 ", %52, %53, %54, %55"
#define LK_D120 LK_D112 ", %56, %57, %58, %59"
#define LK_D128 LK_D120 ", %60, %61, %62, %63"
#define LK_D136 LK_D128 ", %64, %65, %66, %67"
#define LK_D144 LK_D136 ", %68, %69, %70, %71"
#define LK_D152 LK_D144 ", %72, %73, %74, %75"
#define LK_D160 LK_D152 ", %76, %77, %78, %79"
#define LK_D168 LK_D160 ", %80, %81, %82, %83"
#define LK_D176 LK_D168 ", %84, %85, %86, %87"
#define LK_D184 LK_D176 ", %88, %89, %90, %91"
#define LK_D192 LK_D184 ", %92, %93, %94, %95"
#define LK_D200 LK_D192 ", %96, %97, %98, %99"
#define LK_D208 LK_D200 ", %100, %101, %102, %103"
#define LK_D216 LK_D208 ", %104, %105, %106, %107"
#define LK_D224 LK_D216 ", %108, %109, %110, %111"
#define LK_D232 LK_D224 ", %112, %113, %114, %115"
#define LK_D240 LK_D232 ", %116, %117, %118, %119"
#define LK_D248 LK_D240 ", %120, %121, %122, %123"
#define LK_D256 LK_D248 ", %124, %125, %126, %127"
#define LK_F8 LK_SUM(d[0]), LK_SUM(d[1]), LK_SUM(d[2]), LK_SUM(d[3])
#define LK_F16 LK_F8, LK_SUM(d[4]), LK_SUM(d[5]), LK_SUM(d[6]), LK_SUM(d[7])
#define LK_F24 LK_F16, LK_SUM(d[8]), LK_SUM(d[9]), LK_SUM(d[10]), LK_SUM(d[11])
#define LK_F32 LK_F24, LK_SUM(d[12]), LK_SUM(d[13]), LK_SUM(d[14]), LK_SUM(d[15])
#define LK_F40 LK_F32, LK_SUM(d[16]), LK_SUM(d[17]), LK_SUM(d[18]), LK_SUM(d[19])
#define LK_F48 LK_F40, LK_SUM(d[20]), LK_SUM(d[21]), LK_SUM(d[22]), LK_SUM(d[23])
#define LK_F56 LK_F48, LK_SUM(d[24]), LK_SUM(d[25]), LK_SUM(d[26]), LK_SUM(d[27])
#define LK_F64 LK_F56, LK_SUM(d[28]), LK_SUM(d[29]), LK_SUM(d[30]), LK_SUM(d[31])
#define LK_F72 LK_F64, LK_SUM(d[32]), LK_SUM(d[33]), LK_SUM(d[34]), LK_SUM(d[35])
#define LK_F80 LK_F72, LK_SUM(d[36]), LK_SUM(d[37]), LK_SUM(d[38]), LK_SUM(d[39])
#define LK_F88 LK_F80, LK_SUM(d[40]), LK_SUM(d[41]), LK_SUM(d[42]), LK_SUM(d[43])
#define LK_F96 LK_F88, LK_SUM(d[44]), LK_SUM(d[45]), LK_SUM(d[46]), LK_SUM(d[47])
#define LK_F104 LK_F96, LK_SUM(d[48]), LK_SUM(d[49]), LK_SUM(d[50]), LK_SUM(d[51])
#define LK_F112 LK_F104, LK_SUM(d[52]), LK_SUM(d[53]), LK_SUM(d[54]), LK_SUM(d[55])
#define LK_F120 LK_F112, LK_SUM(d[56]), LK_SUM(d[57]), LK_SUM(d[58]), LK_SUM(d[59])
#define LK_F128 LK_F120, LK_SUM(d[60]), LK_SUM(d[61]), LK_SUM(d[62]), LK_SUM(d[63])
#define LK_F136 LK_F128, LK_SUM(d[64]), LK_SUM(d[65]), LK_SUM(d[66]), LK_SUM(d[67])
#define LK_F144 LK_F136, LK_SUM(d[68]), LK_SUM(d[69]), LK_SUM(d[70]), LK_SUM(d[71])
#define LK_F152 LK_F144, LK_SUM(d[72]), LK_SUM(d[73]), LK_SUM(d[74]), LK_SUM(d[75])
#define LK_F160 LK_F152, LK_SUM(d[76]), LK_SUM(d[77]), LK_SUM(d[78]), LK_SUM(d[79])
#define LK_F168 LK_F160, LK_SUM(d[80]), LK_SUM(d[81]), LK_SUM(d[82]), LK_SUM(d[83])
#define LK_F176 LK_F168, LK_SUM(d[84]), LK_SUM(d[85]), LK_SUM(d[86]), LK_SUM(d[87])
#define LK_F184 LK_F176, LK_SUM(d[88]), LK_SUM(d[89]), LK_SUM(d[90]), LK_SUM(d[91])
#define LK_F192 LK_F184, LK_SUM(d[92]), LK_SUM(d[93]), LK_SUM(d[94]), LK_SUM(d[95])
#define LK_F200 LK_F192, LK_SUM(d[96]), LK_SUM(d[97]), LK_SUM(d[98]), LK_SUM(d[99])
#define LK_F208 LK_F200, LK_SUM(d[100]), LK_SUM(d[101]), LK_SUM(d[102]), LK_SUM(d[103])
#define LK_F216 LK_F208, LK_SUM(d[104]), LK_SUM(d[105]), LK_SUM(d[106]), LK_SUM(d[107])
#define LK_F224 LK_F216, LK_SUM(d[108]), LK_SUM(d[109]), LK_SUM(d[110]), LK_SUM(d[111])
#define LK_F232 LK_F224, LK_SUM(d[112]), LK_SUM(d[113]), LK_SUM(d[114]), LK_SUM(d[115])
#define LK_F240 LK_F232, LK_SUM(d[116]), LK_SUM(d[117]), LK_SUM(d[118]), LK_SUM(d[119])
#define LK_F248 LK_F240, LK_SUM(d[120]), LK_SUM(d[121]), LK_SUM(d[122]), LK_SUM(d[123])
#define LK_F256 LK_F248, LK_SUM(d[124]), LK_SUM(d[125]), LK_SUM(d[126]), LK_SUM(d[127])
// LK_EACH_N(M, T): M(T, N, numbers of the operands behind the N / 2 accumulators)
#define LK_EACH_N(M, T) \
    M(T, 8, 4, 5, 6, 7, 8, 9, 10, 11) \
    M(T, 16, 8, 9, 10, 11, 12, 13, 14, 15) \
    M(T, 24, 12, 13, 14, 15, 16, 17, 18, 19) \
    M(T, 32, 16, 17, 18, 19, 20, 21, 22, 23) \
    M(T, 40, 20, 21, 22, 23, 24, 25, 26, 27) \
    M(T, 48, 24, 25, 26, 27, 28, 29, 30, 31) \
    M(T, 56, 28, 29, 30, 31, 32, 33, 34, 35) \
    M(T, 64, 32, 33, 34, 35, 36, 37, 38, 39) \
    M(T, 72, 36, 37, 38, 39, 40, 41, 42, 43) \
    M(T, 80, 40, 41, 42, 43, 44, 45, 46, 47) \
    M(T, 88, 44, 45, 46, 47, 48, 49, 50, 51) \
    M(T, 96, 48, 49, 50, 51, 52, 53, 54, 55) \
    M(T, 104, 52, 53, 54, 55, 56, 57, 58, 59) \
    M(T, 112, 56, 57, 58, 59, 60, 61, 62, 63) \
    M(T, 120, 60, 61, 62, 63, 64, 65, 66, 67) \
    M(T, 128, 64, 65, 66, 67, 68, 69, 70, 71) \
    M(T, 136, 68, 69, 70, 71, 72, 73, 74, 75) \
    M(T, 144, 72, 73, 74, 75, 76, 77, 78, 79) \
    M(T, 152, 76, 77, 78, 79, 80, 81, 82, 83) \
    M(T, 160, 80, 81, 82, 83, 84, 85, 86, 87) \
    M(T, 168, 84, 85, 86, 87, 88, 89, 90, 91) \
    M(T, 176, 88, 89, 90, 91, 92, 93, 94, 95) \
    M(T, 184, 92, 93, 94, 95, 96, 97, 98, 99) \
    M(T, 192, 96, 97, 98, 99, 100, 101, 102, 103) \
    M(T, 200, 100, 101, 102, 103, 104, 105, 106, 107) \
    M(T, 208, 104, 105, 106, 107, 108, 109, 110, 111) \
    M(T, 216, 108, 109, 110, 111, 112, 113, 114, 115) \
    M(T, 224, 112, 113, 114, 115, 116, 117, 118, 119) \
    M(T, 232, 116, 117, 118, 119, 120, 121, 122, 123) \
    M(T, 240, 120, 121, 122, 123, 124, 125, 126, 127) \
    M(T, 248, 124, 125, 126, 127, 128, 129, 130, 131) \
    M(T, 256, 128, 129, 130, 131, 132, 133, 134, 135)
// The same for integers, which have no other N.
#define LK_EACH_INTEGER_N(M, T) \
    M(T, 8, 4, 5, 6, 7, 8, 9, 10, 11) \
    M(T, 16, 8, 9, 10, 11, 12, 13, 14, 15) \
    M(T, 24, 12, 13, 14, 15, 16, 17, 18, 19) \
    M(T, 32, 16, 17, 18, 19, 20, 21, 22, 23) \
    M(T, 48, 24, 25, 26, 27, 28, 29, 30, 31) \
    M(T, 64, 32, 33, 34, 35, 36, 37, 38, 39) \
    M(T, 80, 40, 41, 42, 43, 44, 45, 46, 47) \
    M(T, 96, 48, 49, 50, 51, 52, 53, 54, 55) \
    M(T, 112, 56, 57, 58, 59, 60, 61, 62, 63) \
    M(T, 128, 64, 65, 66, 67, 68, 69, 70, 71) \
    M(T, 144, 72, 73, 74, 75, 76, 77, 78, 79) \
    M(T, 160, 80, 81, 82, 83, 84, 85, 86, 87) \
    M(T, 176, 88, 89, 90, 91, 92, 93, 94, 95) \
    M(T, 192, 96, 97, 98, 99, 100, 101, 102, 103) \
    M(T, 208, 104, 105, 106, 107, 108, 109, 110, 111) \
    M(T, 224, 112, 113, 114, 115, 116, 117, 118, 119) \
    M(T, 240, 120, 121, 122, 123, 124, 125, 126, 127) \
    M(T, 256, 128, 129, 130, 131, 132, 133, 134, 135)
