"""The formats that the kernels of ONNX Runtime take, read from its own registries.

A line is an op of ONNX. Its two columns are the CUDA and the CPU execution provider of
onnxruntime-gpu 1.31.1 (its CPU half is that of onnxruntime 1.31.1 on x86-64). ``6:hf 13:hbf``
means: the op of op set 6 has kernels for FP16 and FP32, the op of op set 13 also for BF16. ``-``
means no kernel. ``x`` means that the runtime replaces the op by its definition, with the formats
that all ops of the definition take, if those are known without the node. The format is that of
the type variable of the op's first FP32 output, else input; other type variables are FP32.

``bench/onnx/kernels.py`` compares these lines with an installed runtime and prints new ones.
"""

TABLE = """
Abs                        | 6:hf 13:hbf           | 6:f
Acos                       | -                     | 7:f
Acosh                      | -                     | 9:f
Add                        | 7:hf 13:hbf           | 7:f
AffineGrid                 | 20:fx                 | 20:f
ArgMax                     | 1:hf                  | 1:f
ArgMin                     | 1:hf                  | 1:f
Asin                       | -                     | 7:f
Asinh                      | -                     | 9:f
Atan                       | -                     | 7:f
Atanh                      | -                     | 9:f
Attention                  | 23:hbf 25:x           | 23:hf 25:x
AveragePool                | 7:hf 22:hbf           | 7:f
BatchNormalization         | 7:hf                  | 7:f
Bernoulli                  | 15:x                  | 15:x
BitCast                    | -                     | 26:hbf
BlackmanWindow             | 17:fx                 | 17:f
Cast                       | 6:hbf 28:-            | 6:hbf 28:-
CastLike                   | 15:x                  | 15:x
CausalConvWithState        | 27:x                  | 27:x
Ceil                       | 6:hf                  | 6:f
Celu                       | 12:x                  | 12:f 28:fx
CenterCropPad              | 18:x                  | 18:x
Clip                       | 6:f 12:hf             | 6:f 12:hf
Col2Im                     | -                     | 18:f
Compress                   | 9:hbf 28:-            | 9:hbf 28:-
Concat                     | 4:hbf                 | 4:hbf
ConcatFromSequence         | 11:hbf                | 11:hbf
ConstantOfShape            | 9:hbf                 | 9:hbf
Conv                       | 1:hf 22:hbf           | 1:f
ConvTranspose              | 1:hf                  | 1:f
Cos                        | 7:hf 22:hbf           | 7:f
Cosh                       | -                     | 9:f
CumProd                    | -                     | 26:f
CumSum                     | 11:f 14:hf            | 11:f
DFT                        | -                     | 17:f
DeformConv                 | 19:hf 22:hbf          | 19:f
DepthToSpace               | 1:hf 28:x             | 1:f 28:x
DequantizeLinear           | 10:hbf 19:hf 23:f 28:- | 10:hbf 19:hf 28:-
Det                        | -                     | 11:f
Div                        | 7:hf 13:hbf           | 7:f
Dropout                    | 7:hf 13:hbf 22:-      | 7:hf 12:f
DynamicQuantizeLinear      | 11:fx                 | 11:hbf
Einsum                     | 12:hf 28:-            | 12:f 28:-
Elu                        | 6:hf 22:hfx           | 6:f
Equal                      | 11:hf                 | 11:f
Erf                        | 9:hf 13:hbf           | 9:f
Exp                        | 6:hf 13:hbf           | 6:f
Expand                     | 8:hbf                 | 8:hf
EyeLike                    | 9:f 22:-              | 9:f
Flatten                    | 1:hbf                 | 1:hbf
Floor                      | 6:hf                  | 6:f
GRU                        | 7:hf                  | 7:f
Gather                     | 1:hbf                 | 1:hbf
GatherElements             | 11:hbf                | 11:hbf
GatherND                   | 11:hf 13:hbf          | 11:hbf
Gelu                       | 20:hbf                | 20:f
Gemm                       | 7:hf 13:hbf           | 7:f
GlobalAveragePool          | 1:hf                  | 1:f
GlobalLpPool               | -                     | 2:f 22:-
GlobalMaxPool              | 1:hf                  | 1:f
Greater                    | 7:hf                  | 7:f
GreaterOrEqual             | 12:hf                 | 12:f
GridSample                 | 16:f                  | 16:f
GroupNormalization         | 21:x                  | 21:x
HammingWindow              | 17:fx                 | 17:f
HannWindow                 | 17:fx                 | 17:f
HardSigmoid                | 6:hf 22:hbf           | 6:f
HardSwish                  | 14:hf 22:hbf          | 14:fx
Hardmax                    | -                     | 1:f
Identity                   | 1:hbf                 | 1:hbf
InstanceNormalization      | 6:hf 22:-             | 6:f
IsInf                      | 10:f 20:hbf           | 10:f 20:hbf
IsNaN                      | 9:hf 13:hbf           | 9:hf 20:hbf
LRN                        | 1:hf                  | 1:f
LSTM                       | 7:hf                  | 7:f
LayerNormalization         | 17:hbf                | 17:hbf
LeakyRelu                  | 6:hf                  | 6:f
Less                       | 7:hf                  | 7:f
LessOrEqual                | 12:hf                 | 12:f
LinearAttention            | 27:x                  | 27:x
Log                        | 6:hf                  | 6:f
LogSoftmax                 | 1:hf                  | 1:f
LpNormalization            | 1:hf 22:hbf           | 1:f
LpPool                     | -                     | 2:f
MatMul                     | 1:hf 13:hbf           | 1:f
Max                        | 6:hbf                 | 6:f 12:hf
MaxPool                    | 1:hf 22:-             | 1:f
MaxRoiPool                 | -                     | 1:f 22:-
MaxUnpool                  | -                     | 9:f
Mean                       | -                     | 6:f
MeanVarianceNormalization  | 9:hfx 13:hbfx         | 9:f
MelWeightMatrix            | -                     | 17:f
Min                        | 6:hbf                 | 6:f 12:hf
Mish                       | 18:hfx 22:hbfx        | 18:fx
Mod                        | 10:hf 13:hbf 28:-     | 10:hf 28:-
Mul                        | 7:hf 13:hbf           | 7:f
Multinomial                | -                     | 7:f 22:-
Neg                        | 6:hf 13:hbf           | 6:f
NegativeLogLikelihoodLoss  | 12:x                  | 12:x
NonMaxSuppression          | 10:hbf                | 10:hbf
NonZero                    | 9:hf                  | 9:f
OneHot                     | 11:hf 28:-            | 9:f 28:-
Optional                   | -                     | 15:hbf 28:-
OptionalGetElement         | -                     | 15:hbf 28:-
OptionalHasElement         | -                     | 18:hbf 28:-
PRelu                      | 7:hf                  | 7:f
Pad                        | 2:hf                  | 2:f
Pow                        | 7:hf 13:hbf           | 7:f
QLinearConv                | -                     | 10:hbf
QLinearMatMul              | -                     | 10:hbf 21:f
QuantizeLinear             | 10:f 19:hf 28:-       | 10:f 19:hf 28:-
RMSNormalization           | 23:hbf                | 23:hf
RNN                        | 7:hf                  | 7:f
RandomNormal               | 1:hf 22:hbf           | 1:f 22:-
RandomNormalLike           | 1:hf 22:hbf           | 1:f 22:-
RandomUniform              | 1:hf 22:hbf           | 1:f 22:-
RandomUniformLike          | 1:hf 22:hbf           | 1:f 22:-
Range                      | 11:f                  | 11:f
Reciprocal                 | 6:hf                  | 6:f
ReduceL1                   | 1:hf                  | 1:f
ReduceL2                   | 1:hf                  | 1:f
ReduceLogSum               | 1:hf 28:hfx           | 1:f 28:fx
ReduceLogSumExp            | 1:hf 28:x             | 1:f 28:x
ReduceMax                  | 1:hf                  | 1:f
ReduceMean                 | 1:hbf                 | 1:f
ReduceMin                  | 1:hf                  | 1:f
ReduceProd                 | 1:hf                  | 1:f
ReduceSum                  | 1:hf 13:hbf           | 1:f
ReduceSumSquare            | 1:hf                  | 1:f
Relu                       | 6:hf 13:hbf           | 6:f
Reshape                    | 1:hbf                 | 1:hbf
Resize                     | 10:hf                 | 10:f
ReverseSequence            | 10:hbf 28:-           | 10:hbf 28:-
RoiAlign                   | 10:f 16:hf 22:hbf     | 10:f 22:-
RotaryEmbedding            | 23:hbf                | 23:hf
Round                      | 11:hf                 | 11:hf
STFT                       | -                     | 17:f
Scatter                    | 9:hbf                 | 9:hbf
ScatterElements            | 11:hbf                | 11:hbf
ScatterND                  | 11:hbf                | 11:hbf
Selu                       | 6:hf 22:hfx           | 6:f
SequenceAt                 | 11:hbf                | 11:hbf
SequenceConstruct          | 11:hbf                | 11:hbf
SequenceInsert             | 11:hbf                | 11:hbf
Shape                      | 1:hbf                 | 1:hbf
Shrink                     | 9:hf                  | 9:hbf
Sigmoid                    | 6:hf 13:hbf           | 6:f
Sign                       | 13:hbf                | 9:hbf
Sin                        | 7:hf 22:hbf           | 7:f
Sinh                       | -                     | 9:f
Size                       | 1:hbf                 | 1:f
Slice                      | 1:hbf                 | 1:hbf
Softmax                    | 1:hf 13:hbf           | 1:f
SoftmaxCrossEntropyLoss    | 12:x                  | 12:x
Softplus                   | 1:hf 22:hbf           | 1:f
Softsign                   | 1:hf 22:hbf           | 1:f
SpaceToDepth               | 1:hf 28:x             | 1:f 28:x
Split                      | 2:hbf                 | 2:hbf
SplitToSequence            | -                     | 11:hf
Sqrt                       | 6:hf 13:hbf           | 6:f
Squeeze                    | 1:hbf                 | 1:hbf
Sub                        | 7:hf 13:hbf           | 7:f
Sum                        | 6:hbf                 | 6:f
SwiGLU                     | 28:x                  | 28:x
Swish                      | 24:hbfx               | 24:fx
Tan                        | -                     | 7:f
Tanh                       | 6:hf 13:hbf           | 6:f
TensorScatter              | 24:hbf                | 24:hbf
TfIdfVectorizer            | -                     | 9:f
ThresholdedRelu            | 10:hf 22:hfx          | 10:f
Tile                       | 6:hf 13:hbf           | 6:f
TopK                       | 1:hf 24:hbf           | 1:f
Transpose                  | 1:hbf                 | 1:hbf
Trilu                      | 14:hbf                | 14:f
Unique                     | -                     | 11:f 28:-
Unsqueeze                  | 1:hbf                 | 1:hbf
Upsample                   | 7:hf                  | 7:f
Where                      | 9:hf 16:hbf           | 9:f
"""
